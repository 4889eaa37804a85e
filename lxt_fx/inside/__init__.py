"""Inside a model: latent and conditional relevance, dictionaries, corpora, steering."""
