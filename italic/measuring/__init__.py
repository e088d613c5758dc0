"""Rates, times, tables, figures and reports."""
