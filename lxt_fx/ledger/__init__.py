"""Where all of an explained value went: taps on every edge, what each rule claims to absorb, the books, the flow graph."""
