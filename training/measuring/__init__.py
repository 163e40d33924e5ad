"""What everything is measured with: figures of merit with intervals, scores of many films, sections and plots of a report."""
