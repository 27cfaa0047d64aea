//! Members that save views.

use super::*;

#[test]
fn views_are_saved_by_one_member_each() {
    run(async {
        let store = shared();
        let nodes = three(&store).await;
        pass(TTL).await;
        let mut savers = BTreeMap::<MemberId, usize>::new();
        for view in 0..60 {
            let view = format!("view-{view}");
            let saver = nodes[0].membership.saver_of(&view).unwrap();
            assert!(nodes.iter().all(|node| node.membership.saver_of(&view) == Some(saver)));
            *savers.entry(saver).or_default() += 1;
        }
        assert!(savers.len() == 3 && savers.values().all(|views| *views >= 5), "{savers:?}");
    });
}

#[test]
fn last_member_saves_views_until_it_has_left() {
    run(async {
        let store = shared();
        let nodes = three(&store).await;
        pass(TTL).await;
        let draining = |leases: &mut Leases, last: MemberId| {
            leases.members.iter_mut().for_each(|member| member.is_draining = member.id != last);
        };
        let membership = &nodes[0].membership;
        for node in &nodes {
            draining(&mut membership.seen.lock().leases, node.membership.member.id);
            assert_eq!(
                membership.saver_of("view"),
                Some(node.membership.member.id),
                "a member that leaves saves nothing"
            );
        }
        let mut alone = membership.seen.lock();
        alone.leases.members.retain(|member| member.id == membership.member.id);
        alone.leases.members[0].is_draining = true;
        drop(alone);
        assert_eq!(membership.saver_of("view"), Some(membership.member.id));
    });
}
