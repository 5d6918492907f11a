//! The clients of a worker.

use std::ops::{Index, IndexMut};

use crate::places::Places;

use super::client::Client;
use super::handles::{ClientId, ClientKey};

/// See the module's words.
#[derive(Default, Debug)]
pub(super) struct Clients {
    places: Places<Client>,
}

impl Clients {
    pub(super) fn insert(&mut self, client: Client) -> ClientId {
        ClientId(self.places.insert(client) as u32)
    }

    pub(super) fn remove(&mut self, id: ClientId) -> Option<Client> {
        self.places.remove(id.index())
    }

    #[inline(always)]
    pub(super) fn get(&self, id: ClientId) -> Option<&Client> {
        self.places.get(id.index())
    }

    #[inline(always)]
    pub(super) fn get_mut(&mut self, id: ClientId) -> Option<&mut Client> {
        self.places.get_mut(id.index())
    }

    /// `None`, where a successor sits in its place.
    #[inline(always)]
    pub(super) fn of(&mut self, key: ClientKey) -> Option<&mut Client> {
        self.get_mut(key.id).filter(|client| client.occupant == key.occupant)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.places.iter().map(|(at, _)| ClientId(at as u32))
    }
}

impl Index<ClientId> for Clients {
    type Output = Client;

    #[inline(always)]
    fn index(&self, id: ClientId) -> &Client {
        &self.places[id.index()]
    }
}

impl IndexMut<ClientId> for Clients {
    #[inline(always)]
    fn index_mut(&mut self, id: ClientId) -> &mut Client {
        &mut self.places[id.index()]
    }
}
