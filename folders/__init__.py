"""One graph over every picture of a folder: `python run.py translate IN OUT --workflow FILE.json`.

`graph` reads the graph and finds its picture and what it saves, `pictures` the folder, `runner` runs one picture in the
host, `worker` does one picture from file to file, `ledger` remembers, `serial` and `ray_job` do many, `command` is what
a user calls. A picture's result depends on the picture, its name, the graph and the seed, and on nothing else: not on
the order, the worker, or what was done before.
"""


class JobError(Exception):
    """The job can't be started, or can't go on; the message says why and what to do, in a sentence."""
