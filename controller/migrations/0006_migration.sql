-- The host that a VM is moving to, from the choice of it until it is known where the VM is.
ALTER TABLE vm ADD COLUMN moving_to TEXT;
