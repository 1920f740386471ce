"""`python run.py translate IN OUT --workflow FILE.json`: one graph over every picture of a folder, in a real ComfyUI.

The graph loads one picture and saves one; it is the editor's file or its API export. Results lie in OUT as the pictures
lie in IN, as PNG, beside figures.csv, failed.csv and contact-sheet.jpg. Stop it when you like: the same command goes
on where it was, and does nothing twice. A picture's result depends on the picture, its path, the graph and --seed only.
"""
from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from . import JobError, checks, pictures, serial, sheet
from .figures import failures, table
from .ledger import FOLDER, Ledger, is_done
from .worker import Job


def main(argv: list[str]) -> int:
    try:
        return translate(parser().parse_args(argv))
    except JobError as error:
        said = str(error)
    except OSError as error:        # OUT's own notes that may not be read, and the like
        if error.filename is None:
            raise
        said = f"{error.filename}: {error.strerror}. What was done is kept; mend that, and the same command goes on."
    print(f"run.py translate: {said}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py translate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="folder of pictures, nested as you like, of any format Pillow reads")
    add("target", type=Path, metavar="OUT", help="folder of results")
    add("--workflow", type=Path, required=True, metavar="FILE.json", help="the graph")
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="settings",
        help="change a value of the graph; NODE is a node's id, title or class")
    add("--seed", type=int, default=0, help="another seed for every picture (default 0)")
    add("--picture", metavar="NODE", help="the node that loads the picture, where there are several")
    add("--save", metavar="NODE", help="the node that saves the result, where there are several")
    add("--pack", action="append", default=[], metavar="FOLDER", help="load this custom node pack too")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help="spread over a Ray cluster, or one started here")
    add("--workers", type=one_or_more, metavar="N", help="with --ray: so many (default: one a GPU, or one a core)")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--retry-failed", action="store_true", help="try again what failed before")
    add("--replace", action="store_true", help="write over what other jobs or hands left in OUT")
    add("--keep-suffix", action="store_true", help="write a.jpg as a.jpg.png")
    add("--dry-run", action="store_true", help="check everything and say what would be done")
    return parser


def one_or_more(text: str) -> int:
    """A number of workers. Raises argparse.ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of workers; give 1 or more")
    return int(text)


def translate(options: argparse.Namespace) -> int:
    """0 if every picture has its result, 1 if any failed."""
    if options.workers and options.ray is None:
        raise JobError("--workers is the number of Ray's workers: give --ray too, or leave it out.")
    source, target = options.source.absolute(), options.target.absolute()
    checks.check_folders(source, target)
    names = pictures.found(source)
    if not names:
        raise JobError(f"There are no pictures in {source}.")
    pictures.check_names(names, options.keep_suffix)
    host, job = prepared(options, source, target, names)
    ledger, there = Ledger(job.folder), results_there(target)
    rows = ledger.merged()
    todo = [name for name in names if not done(job, name, rows, there, options.retry_failed)]
    checks.check_results(job, todo, there)
    checks.check_target(source, target, todo, keep=not options.dry_run)
    report(job, names, todo, rows)
    if options.dry_run:
        return 0
    record_job(job)
    stopped = True
    try:
        work(rows_of(options, job, todo, host), len(names), len(todo))
        stopped = False
    finally:
        failed = finish(job, names, ledger, stopped)
    return 1 if failed else 0


def prepared(options, source: Path, target: Path, names: list[str]) -> tuple:
    """(host, job), the graph checked on a picture. Raises JobError."""
    from . import graph, settings
    from .runner import Runner, classes_of, start
    example = checks.readable_example(source, names)
    packs = tuple(str(Path(pack).absolute()) for pack in options.pack)
    host = start(options.cpu, packs)
    nodes = graph.read(options.workflow, host)
    made = graph.prepare(nodes, classes_of(nodes, host), options.settings, options.picture, options.save)
    Runner(made, host).check(*example)
    parts = settings.parts_of(made, options.seed, host, packs, options.cpu)
    settings.check_other_jobs(target, parts, options.replace)
    return host, Job(source, target, made, options.seed, parts, options.cpu, packs, options.keep_suffix,
                     options.replace)


def record_job(job: Job) -> None:
    """Say in OUT which job its results are of; what another had noted goes, because its results do."""
    from . import settings
    for other in (job.target / FOLDER).iterdir():
        if other.is_dir() and other != job.folder:
            shutil.rmtree(other)
    job.folder.mkdir(exist_ok=True)
    sheet.write(settings.as_text(job.parts), job.folder / settings.FILE)


def rows_of(options, job: Job, todo: list[str], host) -> Iterable[dict]:
    """The rows of the pictures as they are done, here or in a cluster."""
    if options.ray is None or not todo:
        return serial.rows(job, todo, host)
    from . import ray_job
    return ray_job.rows(job, todo, options.ray, options.workers)


def results_there(target: Path) -> set[str]:
    """All PNG files of OUT, from one walk: a result that was deleted is made again."""
    return {name for name in pictures.found(target) if name.endswith(".png")} if target.is_dir() else set()


def done(job: Job, name: str, rows: dict[str, dict], there: set[str], retry_failed: bool) -> bool:
    try:
        stat = (job.source / name).stat()
    except OSError:
        return False            # a link to nothing: it is listed when its turn comes
    has_result = pictures.result_name(name, job.keep_suffix) in there
    return is_done(rows.get(name), stat.st_size, stat.st_mtime_ns, has_result, retry_failed)


def report(job: Job, names: list[str], todo: list[str], rows: dict[str, dict]) -> None:
    """Say what there is to do."""
    left = set(todo)
    failed = sum("error" in rows[name] for name in names if name in rows and name not in left)
    node, name = job.graph.picture
    print(f"{len(names)} pictures in {job.source}; {len(names) - len(todo) - failed} are done, {failed} failed before"
          f"{' (--retry-failed tries them again)' if failed else ''}, {len(todo)} to do.\n"
          f"Each goes into {node}.{name}; {job.graph.saved[0]} is saved; seeds that its path decides: "
          f"{', '.join('.'.join(seed) for seed in job.graph.seeds) or 'none'}.", flush=True)


def work(rows: Iterable[dict], total: int, todo: int) -> None:
    """Take the rows and show how it goes."""
    from tqdm import tqdm
    failed = 0
    with tqdm(total=total, initial=total - todo, unit="picture", smoothing=.05) as bar:
        for row in rows:
            if "error" in row:
                failed += 1
                bar.set_postfix(failed=failed)
            bar.update()


def finish(job: Job, names: list[str], ledger: Ledger, stopped: bool) -> int:
    """Write the reports and say how it stands; the number of pictures that failed."""
    merged = ledger.merged()
    rows = [merged[name] for name in names if name in merged]
    failed = [row for row in rows if "error" in row]
    try:
        write_reports(job, rows)
    except OSError as error:
        print(f"The reports could not be written: {error.strerror}.", file=sys.stderr)
    first = "; the first: {name}: {error}".format(**failed[0]).replace("\n", " ") if failed else ""
    print(f"{len(rows) - len(failed)} of {len(names)} pictures have their result in {job.target}, {len(failed)} failed"
          f"{first}."
          + (" Stopped; the same command goes on." if stopped else ""), flush=True)
    remove_old_parts(job.target / FOLDER)
    return len(failed)


def write_reports(job: Job, rows: list[dict]) -> None:
    sheet.write(table(rows), job.target / "figures.csv")
    sheet.write(failures(rows), job.target / "failed.csv")
    if pairs := sheet.contact_sheet(rows, job.source, job.target):
        sheet.write(pairs, job.target / "contact-sheet.jpg")


def remove_old_parts(folder: Path) -> None:
    """Unfinished files that killed workers left a day ago or more: whoever wrote them is gone."""
    for part in folder.glob("*/*.part"):
        with contextlib.suppress(FileNotFoundError):        # another command's, done in the meantime
            if time.time() - part.stat().st_mtime > 86400:
                part.unlink()
