"""Measurement of rates and times; tables, figures and reports."""
