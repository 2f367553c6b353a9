"""The command line, as `python -m maxwhisper` and as `maxwhisper`."""


def main() -> int:
    """Run `maxwhisper.cli.main`, and return 130 if interrupted, even during the import."""
    try:
        from maxwhisper import cli

        return cli.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
