"""Curation: verified chains of thought out of questions and clips, by models behind endpoints."""
