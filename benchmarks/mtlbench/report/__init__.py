"""The report: numbers (`summary`), figures as inline SVG (`figures`), and one self-contained page (`page`)."""
