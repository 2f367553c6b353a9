"""`python -m maxwhisper`, the command line."""

from maxwhisper.cli import main

raise SystemExit(main())
