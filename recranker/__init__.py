"""recranker: a large language model as the last ranking stage of a recommender, on Ray."""
