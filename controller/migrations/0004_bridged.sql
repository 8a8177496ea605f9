-- Networks on segments outside: the interface of the hosts, and the VLAN on it.
ALTER TABLE network ADD COLUMN uplink TEXT;
ALTER TABLE network ADD COLUMN vlan BIGINT;
-- Names of a host's network interfaces, each with a space before and after it: ' eth0 eth1 '.
ALTER TABLE host ADD COLUMN nics TEXT NOT NULL DEFAULT '';
