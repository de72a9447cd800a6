"""``python -m gridstead.cli``: the command without an installed script."""

from gridstead.cli.app import main

if __name__ == "__main__":
    main(prog_name="gridstead")
