"""Pictures: one module a notebook, in one style, and sliders over them."""
