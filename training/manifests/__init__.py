"""Which films there are and what is known of each: manifests in every form, checked, and their rows as arrays."""
