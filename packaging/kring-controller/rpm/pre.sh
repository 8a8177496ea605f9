# Before the files are there, because one of them belongs to the group.
systemd-sysusers --replace=/usr/lib/sysusers.d/kring-controller.conf - <<'END' || :
u kring - "Kring controller" /var/lib/kring
END
