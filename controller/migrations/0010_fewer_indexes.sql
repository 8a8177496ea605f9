-- volume_by_device begins with the same column.
DROP INDEX volume_by_vm;
