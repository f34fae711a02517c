"""Operations: what one can ask of a system and do to it."""
