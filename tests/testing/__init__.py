"""Tests of the test kit: each tool is shown to pass what is right, and to catch the fault that it is for."""
