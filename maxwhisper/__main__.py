"""The command line, as `python -m maxwhisper` and as `maxwhisper`."""

from maxwhisper.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
