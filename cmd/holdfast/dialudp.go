package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/holdfast-net/holdfast"
)

// datagrams sends each line of the input as a datagram and prints each that comes,
// until linger after the end of the input, the first error, or the end of ctx. A
// refusal by ICMP comes as the error of a later call: of whichever that is.
func (p *program) datagrams(ctx context.Context, c *holdfast.Cluster, linger time.Duration) error {
	conn, err := c.DialContext(ctx, "", "")
	if err != nil {
		return err
	}
	input, ended := p.inputLines(ctx)
	received := make(chan error, 1)
	go func() {
		defer close(received)
		received <- printDatagrams(p.out, conn)
	}()
	err = sendDatagrams(ctx, conn, input, ended, received, linger)
	conn.Close()
	for range received { // until what has come is printed
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("udp://%s: %w", conn.RemoteAddr(), op.Err)
	}
	return err
}

// sendDatagrams sends until what datagrams says.
func sendDatagrams(ctx context.Context, conn io.Writer, input <-chan []byte, ended, received <-chan error, linger time.Duration) error {
	var over <-chan time.Time
	for {
		select {
		case line := <-input:
			if _, err := conn.Write(chomp(line)); err != nil {
				return err
			}
		case err := <-ended:
			if err != nil {
				return err
			}
			over = time.After(linger)
		case err := <-received:
			return err
		case <-over:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// printDatagrams gives each datagram a line of its own; what is in it stays as it is.
func printDatagrams(out io.Writer, conn io.Reader) error {
	buf := make([]byte, maxLine)
	for {
		n, err := conn.Read(buf[:maxLine-1])
		if err != nil {
			return err
		}
		if _, err := out.Write(asLine(buf[:n])); err != nil {
			return err
		}
	}
}

// exchangeLine asks by one datagram.
func exchangeLine(ctx context.Context, c *holdfast.Cluster, safety holdfast.Safety, line []byte) ([]byte, error) {
	reply, err := c.Exchange(ctx, safety, chomp(line), nil)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(chomp(reply), []byte("\n")) {
		return nil, errTwoLines
	}
	return asLine(reply), nil
}

func chomp(line []byte) []byte { return bytes.TrimSuffix(line, []byte("\n")) }

// asLine adds a newline to what does not end with one.
func asLine(b []byte) []byte { return append(chomp(b), '\n') }
