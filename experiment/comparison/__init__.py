"""Models side by side: trained where they are not yet, ranked, drawn, put on a page."""
