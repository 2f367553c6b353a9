"""The command line, as `python -m maxwhisper` and as `maxwhisper`."""


def main() -> int:
    """`maxwhisper.cli.main`, which can be interrupted already while it is imported."""
    try:
        from maxwhisper import cli

        return cli.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
