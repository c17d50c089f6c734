"""One file per operator family of the dialect. Importing a module defines its operators."""
