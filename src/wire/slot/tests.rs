//! Slots that a worker fills, and slots that are filled with anything.

use super::*;

fn pair() -> (Slot, SlotWriter) {
    let slot = Slot::new(None).unwrap();
    let writer = SlotWriter::new(slot.as_fd().try_clone_to_owned().unwrap()).unwrap();
    (slot, writer)
}

/// Lets it come as far as its report.
fn reporting(writer: &SlotWriter) -> &SlotWriter {
    for state in [State::Begun, State::Running, State::Reporting] {
        writer.advance(state);
    }
    writer
}

#[test]
fn fresh_slot_is_empty() {
    let header = pair().0.header().unwrap();
    assert_eq!((header.state, header.failed_at, header.note), (State::Empty, None, None));
    assert!(!pair().0.is_whole().unwrap());
}

#[test]
fn whole_report_is_read_back() {
    let (slot, writer) = pair();
    writer.set_failed_at(Moment::from_nanos(7));
    writer.set_failed_at(Moment::from_nanos(9));
    reporting(&writer);
    assert!(!slot.is_whole().unwrap());
    writer.finish(State::Raised, b"body", 3).unwrap();
    assert!(slot.is_whole().unwrap());
    let header = slot.header().unwrap();
    assert_eq!((header.state, header.peak_kib), (State::Raised, 3));
    assert_eq!(header.failed_at, Some(Moment::from_nanos(7)));
    assert_eq!(slot.body(&header).unwrap(), b"body");
}

#[test]
fn body_that_is_not_there_is_an_error() {
    let (slot, writer) = pair();
    reporting(&writer).finish(State::Returned, &[5; 100], 0).unwrap();
    writer.map.u64(BODY_LEN).store(1 << 60, Relaxed);
    assert!(slot.body(&slot.header().unwrap()).unwrap_err().contains("only 100"));
}

#[test]
fn truncated_slot_is_an_error() {
    let (slot, writer) = pair();
    writer.file.set_len(10).unwrap();
    assert!(slot.header().is_err());
    assert!(SlotWriter::new(slot.as_fd().try_clone_to_owned().unwrap()).is_err());
}

#[test]
fn note_and_frames_beyond_their_room_are_cut() {
    let (slot, writer) = pair();
    writer.set_note(&"ä".repeat(5000));
    writer.set_fault(&Fault { signal: Signal::SEGV, address: 1, instruction: 2, stack: 3 });
    assert_eq!((0..1000).take_while(|&n| writer.add_frame(n)).count(), FRAMES_MAX);
    let header = slot.header().unwrap();
    assert_eq!(header.note.unwrap(), "ä".repeat(NOTE_MAX / 2));
    assert_eq!(header.fault.unwrap().frames.len(), FRAMES_MAX);
}

#[test]
fn modules_of_200_objects_have_room_and_what_has_not_is_left_out() {
    let module = |number: u64| Module {
        name: format!("/usr/lib/python3/dist-packages/torch/lib/libpart-{number:05}.so.1"),
        build_id: vec![number as u8; 20],
        bias: 0x7f00_0000_0000 + (number << 24),
        start: 0x7f00_0000_0000 + (number << 24),
        end: 0x7f00_0080_0000 + (number << 24),
    };
    let modules: Vec<_> = (0..2000).map(module).collect();
    let (slot, writer) = pair();
    writer.set_fault(&Fault { signal: Signal::SEGV, address: 1, instruction: 2, stack: 3 });
    let read_back = |modules: &[Module]| {
        writer.set_modules(&ModuleList::of(modules));
        slot.header().unwrap().fault.unwrap().modules
    };
    assert_eq!(read_back(&modules[..200]), modules[..200]);
    let kept = read_back(&modules);
    assert!(kept.len() > 200 && kept == modules[..kept.len()], "{}", kept.len());
    // The first that is left out would not have fitted.
    let with_the_next: Vec<_> = modules[..=kept.len()].iter().map(ModuleList::record).collect();
    let with_the_next = codec::encode_plain(&with_the_next).unwrap();
    assert!(with_the_next.len() > MODULES_MAX - 32, "{}", with_the_next.len());
}

proptest::proptest! {
    #[test]
    fn hostile_slot_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), at in 0_usize..BODY) {
        let (slot, writer) = pair();
        writer.file.write_all_at(&bytes, at as u64).unwrap();
        let header = slot.header().unwrap();
        let _ = slot.body(&header);
    }
}
