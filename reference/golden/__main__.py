"""Write or check the stored results of the references in `golden/`: `nox -s golden`.

Stored results reveal any change of a reference, and tests need not compute them each time. They are
small inputs of every op with the float64 outputs of the NumPy definitions (`ops`), fingerprints of
real models' activations in float64 (`activations`), and OpenAI Whisper's transcripts
(`transcripts`).
"""

import argparse
import sys
from collections.abc import Sequence

from reference.golden import activations, ops, transcripts
from reference.ops import TABLE


def main(argv: Sequence[str] | None = None) -> int:
    """Compute all results again, and store them, or compare them with the stored ones.

    Returns:
        The exit status: 1 with `--check` if any result differs, else 0.
    """
    parser = argparse.ArgumentParser(prog="nox -s golden --", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if any result differs")
    args = parser.parse_args(argv)
    changes = [*ops.update(args.check)]
    for model in activations.CASES:
        changes += activations.update(model, args.check)
    changes += transcripts.update(args.check)
    contents = (
        f"{len(TABLE)} ops, the activations of {len(activations.CASES)} models"
        f" and {len(transcripts.transcript_cases())} transcripts"
    )
    print("\n".join(changes) or f"{contents} are unchanged")
    if changes:
        print("if this is intended, store it: nox -s golden" if args.check else "golden/ is updated")
    return 1 if changes and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
