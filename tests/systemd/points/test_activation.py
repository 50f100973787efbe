"""Sockets that the service manager holds, readiness, and what a start and a stop look like from outside."""

from points import CONTROL, MESH, SERVICE, SOCKET, Case


class Activation(Case):
    def test_01_the_first_connection_starts_the_service(self):
        self.systemctl("stop", SERVICE)
        self.assertFalse(self.is_active(SERVICE))
        self.assertTrue(self.is_active(CONTROL))
        self.ctl("status")
        self.assertTrue(self.is_active(SERVICE))
