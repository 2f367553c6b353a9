"""How fast: MAX beside the programs that people use, in one run and taking turns."""
