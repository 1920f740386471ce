"""What `run.py`, the tests and the benchmarks share: the pinned environment, the host in process, the host as a server.

- `harness.environment`: makes and finds the environment (standard library only, as are `cache`, `pip` and `hosts`)
- `harness.boot`: the real host in this process, graphs through its own executor
- `harness.server`: the real host as a server of its own, graphs over HTTP and websocket
- `harness.convert`: graphs as the editor saves them, turned into what the executor takes
"""
