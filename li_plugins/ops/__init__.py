"""Operations of late interaction, each with a reference and several kernels behind one torch op."""
