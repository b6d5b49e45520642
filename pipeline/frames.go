package pipeline

import (
	"github.com/holdfast-net/holdfast/frame"
)

// Frames is the Config.Decoder of protocols whose replies are messages of a format. A
// message is borrowed: what the reply keeps of it, convert copies. Its error is that
// one reply's.
func Frames[R any](format frame.Format, convert func(msg []byte) (R, error)) func() Decoder[R] {
	return func() Decoder[R] { return &framed[R]{format: format, convert: convert} }
}

type framed[R any] struct {
	format  frame.Format
	convert func([]byte) (R, error)
	need    int // what Cut waits for, so that it is not asked in vain
	from    int
}

func (d *framed[R]) Decode(b []byte) (v R, n int, done bool, err error) {
	if len(b) < d.need {
		return v, 0, false, nil
	}
	f, err := d.format.Cut(b, d.from)
	if err != nil {
		return v, 0, false, err
	}
	if f.Size == 0 {
		d.need, d.from = f.Need, f.From
		return v, 0, false, nil
	}
	d.need, d.from = 0, 0
	v, err = d.convert(f.Msg)
	return v, f.Size, true, err
}
