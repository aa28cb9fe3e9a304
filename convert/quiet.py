"""diffusers and transformers without their bars and advice, for commands that print their own."""

import transformers


def quiet() -> None:
    """To be called before diffusers is imported, which says things while it is."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    import diffusers.utils.logging

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
