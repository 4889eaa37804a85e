"""Reports about an explained module: the printed graph, the certificate, the table of modules and rules."""
