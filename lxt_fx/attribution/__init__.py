"""Running an explained module and reading relevance from it: targets, texts, images, many targets, values inside."""
