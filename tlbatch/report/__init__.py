"""Report pages and figures of runs, comparisons and ensembles."""
