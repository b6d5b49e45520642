//go:build !linux

package main

import "syscall"

// diesWithParent relies on the child, which ends with its standard input.
func diesWithParent() *syscall.SysProcAttr { return nil }

func dieWithParent() error { return nil }
