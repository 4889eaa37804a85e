"""The ledger: where all of an explained value went. Taps on every edge, what each rule absorbs by its formula, the flow
graph."""
