"""`nox -s golden`: what the reference answers is kept in `golden/`, so that a change of it is seen, and tests need not ask it each time.

Kept are small inputs of every op with the float64 outputs of the NumPy definitions (`ops`), signatures of real models' activations in
float64 (`activations`), and OpenAI Whisper's transcripts (`transcripts`).
"""

import argparse
import sys
from collections.abc import Sequence

from reference.golden import activations, ops, transcripts
from reference.ops import TABLE


def main(argv: Sequence[str] | None = None) -> int:
    """Ask the reference anew; rewrite what is kept, or with `--check` return 1 where it differs."""
    parser = argparse.ArgumentParser(prog="nox -s golden --", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, and exit with 1 where anything differs")
    args = parser.parse_args(argv)
    found = [*ops.renew(args.check)]
    for model in activations.CASES:
        found += activations.renew(model, args.check)
    found += transcripts.renew(args.check)
    kept = f"{len(TABLE)} ops, the activations of {len(activations.CASES)} models and {len(transcripts.transcript_cases())} transcripts"
    print("\n".join(found) or f"{kept} are as they were")
    if found:
        print("if that was intended, keep it: nox -s golden" if args.check else "all of this is rewritten in golden/")
    return 1 if found and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
