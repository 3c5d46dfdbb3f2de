"""Readers: files and frames of many formats as lazy tables of events with named columns."""
