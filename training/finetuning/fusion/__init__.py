"""The fusion task: cases with any part missing, what is fitted, who answers, scores, and its report."""
