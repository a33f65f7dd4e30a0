"""Where models come from: one small interface (`base`), one module or package for each scheme."""
