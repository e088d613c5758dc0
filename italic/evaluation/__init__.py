"""The evaluation: curves, classical codecs, figures, dashboards."""
