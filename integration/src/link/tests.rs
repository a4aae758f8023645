use super::*;

/// A server that answers each connection with `size` bytes after one byte of request.
fn server(size: usize) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            std::thread::spawn(move || {
                let mut request = [0];
                // A client that was cut off is one of the cases under test.
                if client.read_exact(&mut request).is_ok() {
                    client.write_all(&vec![7; size]).ok();
                }
            });
        }
    });
    address
}

fn fetch(address: SocketAddr) -> io::Result<usize> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"x")?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)
}

#[test]
fn one_request_pays_handshake_and_round_trip() {
    let link = Link::start(server(10), Quality { bits_per_second: None, round_trip: Duration::from_millis(100) }).unwrap();
    let start = Instant::now();
    assert_eq!(fetch(link.address()).unwrap(), 10);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(200) && took < Duration::from_millis(400), "two round trips of 100 ms took {took:?}");
    assert_eq!((link.bytes_up(), link.bytes_down(), link.connections()), (1, 10, 1));
}

#[test]
fn the_rate_is_shared_by_all_connections() {
    let link = Arc::new(Link::start(server(500_000), Quality::new(20, 0)).unwrap());
    let start = Instant::now();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let address = link.address();
            std::thread::spawn(move || fetch(address).unwrap())
        })
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), 500_000);
    }
    // 2 MB at 20 Mbit/s are 0.8 s.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(780) && took < Duration::from_millis(1300), "2 MB at 20 Mbit/s took {took:?}");
}

#[test]
fn a_cut_breaks_what_runs_and_refuses_what_comes_until_restored() {
    let link = Arc::new(Link::start(server(50_000_000), Quality::new(10, 0)).unwrap());
    let address = link.address();
    let running = std::thread::spawn(move || fetch(address));
    std::thread::sleep(Duration::from_millis(100));
    link.cut();
    assert!(running.join().unwrap().is_err(), "the transfer of 40 s must have been reset");
    assert!(fetch(address).is_err(), "a new connection must fail while the link is cut");
    link.restore();
    link.set_quality(Quality::LOOPBACK);
    assert_eq!(fetch(address).unwrap(), 50_000_000);
}
