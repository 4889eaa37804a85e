"""`python -m lxt_fx` is the command `lxt-fx`."""

from lxt_fx.shell.main import main

if __name__ == "__main__":
    main()
