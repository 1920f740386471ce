"""`python run.py bench [NAME] [--json FILE] [options of the bench]`: without a name, the list of benches."""

import importlib
import sys

BENCHES = {"demo-model": "bench.demo_model", "reconstruction": "bench.reconstruction",
           "memory": "bench.memory",
           "speed": "bench.speed",
           "latent-guidance": "bench.latent_guidance",
           "folders": "bench.folders",
           "edits": "bench.edits", "edits-bound": "bench.edits_bound", "edits-regions": "bench.edits_regions",
           "distil": "bench.distil", "pie": "bench.pie"}


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        for name, module in BENCHES.items():
            print(f"  {name:22} {importlib.import_module(module).__doc__.strip().splitlines()[0]}")
        return 0
    if argv[0] not in BENCHES:
        print(f"There is no bench `{argv[0]}`. There are: {', '.join(BENCHES)}.", file=sys.stderr)
        return 2
    return importlib.import_module(BENCHES[argv[0]]).main(argv[1:])
