"""The anomaly task: roles of films, synthetic lesions, what is trained, scores, and its report."""
