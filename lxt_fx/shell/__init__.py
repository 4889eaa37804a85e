"""The command `lxt-fx`. Each command imports what it needs when it runs, so that the help waits for nothing but typer and
rich, not even for torch."""
