"""Every way into a data-set folder, and the gradients computed from one."""
