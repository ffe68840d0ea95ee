"""Visual document retrieval on pages rendered from text, with colpali-engine."""
