package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
)

// logFile is a file that grows at its end, and can be opened anew after somebody has
// moved it away. Supervisor and workers append to the same one.
type logFile struct {
	path string
	file atomic.Pointer[os.File]
}

func openLogFile(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.reopen()
}

func (l *logFile) reopen() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	if old := l.file.Swap(f); old != nil {
		return old.Close()
	}
	return nil
}

// Write writes a line to the file that is open. One that was swapped meanwhile is
// closed, and then the line is for the new one.
func (l *logFile) Write(p []byte) (int, error) {
	n, err := l.file.Load().Write(p)
	if errors.Is(err, os.ErrClosed) && n == 0 {
		return l.file.Load().Write(p)
	}
	return n, err
}

// openLog makes the log of a service, for people or for programs, and what opens it
// anew.
func (f *serviceFlags) openLog(p *program) (log *slog.Logger, reopen func() error, err error) {
	var out io.Writer = p.err
	if f.logFile != "" {
		file, err := openLogFile(f.logFile)
		if err != nil {
			return nil, nil, err
		}
		out, reopen = file, file.reopen
	}
	if f.json {
		return slog.New(slog.NewJSONHandler(out, nil)), reopen, nil
	}
	return slog.New(slog.NewTextHandler(out, nil)), reopen, nil
}
